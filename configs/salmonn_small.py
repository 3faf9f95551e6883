"""A small SALMONN on the demo corpus: Whisper tiny.en's encoder, a Q-Former, Gemma 3 270M (base); no BEATs.

COMMAND: python -m jaxmoe.launch --phase=all --config=configs/salmonn_small.py
RESULT: docs/salmonn.md. It is quickstart.py but for the fields below, so it takes them from there; with
--workdir=checkpoints/quickstart it goes on from the corpus and the latents of that run.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(variant: str = "full") -> ConfigDict:
    """Fields of a run; --config.group.field=VALUE changes one."""
    c = quickstart.get_config(variant).unlock()
    c.model.second = ""
    for phase in ("gate", "experts", "joint", "encoder", "baseline"):
        c[phase].steps = 0  # left out: SALMONN has its own adapter
    c.salmonn.update(
        llm="gemma-3-270m",  # under the Gemma Terms of Use; qwen2.5-coder-0.5b-instruct takes three times as long
        template="{}\n",  # no chat model; Qwen's is "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
        end="<eos>",  # Qwen's is <|im_end|>
        width=384,  # of the Q-Former: 350 sentences do not fill BERT's 768
        window_s=0.16,  # the original's third of a second is too little room for the tokens of a transcript
        stride_s=0.16,
        spell_steps=400,  # a third of a second each on a core; more learn the sentences by heart
        lr=3e-4,  # the original has 3e-5 and 90,000 steps
        warmup=20,
        steps=600,  # six seconds each on a core
        beam_size=1,
        max_tokens=40,
        log_every=10,
        save_every=50,
    )
    c.evaluate.systems = ("whisper-v2", "salmonn", "salmonn-tuned", "mt")
    c.stress.systems = ()
    if variant == "smoke":
        c.salmonn.update(spell_steps=2, steps=2, batch_size=2, log_every=1, save_every=1, max_tokens=4)
        c.evaluate.batch_size = 2
    return c.lock()
