"""Speech translation for disordered speech: Whisper with a mixture of LoRA experts, in JAX."""

__version__ = "0.1.0"
