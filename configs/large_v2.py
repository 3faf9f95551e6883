"""Whisper large-v2 with ten LoRA experts on a corpus of your own, for a TPU VM or a GPU node.

COMMAND: python -m jaxmoe.launch --phase=all --config=configs/large_v2.py --config.data.path=recordings.csv
RESULT: not run; the sizes follow the published adapters of large-v2. Forked from quickstart.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Fields of a run; --config.group.field=VALUE changes one."""
    c = ConfigDict({"seed": 0})
    c.data = dict(
        corpus="manifest",
        path="",
        pretrain_share=0.2,
        unseen_etiologies="",  # "ALS,stroke": only evaluated, to see what a run does for what it has not heard
        num_workers=8,
    )
    c.quality = dict(  # what is set aside
        min_seconds=0.3,
        max_seconds=600.0,
        max_clipped=0.1,  # share of samples at full scale
        silence_dbfs=-60.0,  # a peak below it is no speech
        max_chars_per_second=30.0,  # fast speech has 25
        min_rate_hz=8000,
        trim_silence_db=0.0,  # 40 cuts off edges 40 dB below the loudest; 0 leaves recordings as they are
    )
    c.demo = dict(
        train_speakers_per_voice=3,
        held_out_speakers_per_voice=7,
        train_utterances=8,
        validation_utterances=3,
        evaluation_utterances=7,
    )
    c.manifest = dict(columns="")  # of a manifest, e.g. "text=transcript,etiology=diagnosis"
    c.sap = dict(disfluencies=False)  # whether the text to learn keeps "(uh)"
    c.torgo = dict(microphone="head")  # head, array or both
    c.uaspeech = dict(microphones="M5")  # M3,M5 or all
    c.huggingface = dict(columns="")  # as of a manifest; "path" names the audio's
    c.mesh = dict(data=-1, model=1)  # model=2 or more shards the backbone where it does not fit one device
    c.model = dict(
        backbone="large-v2",
        second="large-v3",
        num_experts=10,
        rank=8,
        shared_rank=96,
        alpha=16.0,
        top_k=2,
        gate_hidden=512,
        routing="gate",
        lora_targets=(r"decoder/blocks/.*",),
        dtype="auto",
        remat=True,
    )
    c.embed = dict(
        batch_size=32, context="full", frames="audio", margin_s=2.0, variant_clips=256, variant_draws=4
    )
    c.cluster = dict(
        layer=11,  # a third of the encoder's 32 blocks, as block 2 of base's 6
        method="hdbscan",
        pooling="mean",
        nuisance=20,
        remove_text=False,
        by_speaker=True,
        pca=10,
        umap_dim=5,
        neighbors=10,
        min_cluster_share=0.05,
        min_samples=2,
        selection="eom",
        noise="soft",
    )
    c.reweight = ""  # a column, e.g. language, etiology, speaker: training draws its groups equally often
    training = dict(warmup=500, weight_decay=0.01, clip_norm=1.0, log_every=50, save_every=500)
    c.gate = dict(steps=2000, batch_size=256, lr=1e-3, class_balance=0.5, **training)
    c.experts = dict(steps=5000, batch_size=64, lr=1e-4, **training)
    c.joint = dict(
        steps=15_000,
        batch_size=64,
        lr=1e-4,
        balance=0.01,
        z=0.001,
        align=0.1,
        soft_steps=0,
        temperature=1.0,
        noise=0.0,
        min_effective=0.6,
        **training,
    )
    c.baseline = dict(steps=20_000, batch_size=64, lr=1e-4, rank=0, **training)
    c.encoder = dict(steps=0, batch_size=32, rank=4, lr=1e-4, **training)  # gradients of 32 more blocks; not tried
    c.personalize = dict(shots=0, steps=20, lr=1e-3)
    c.mt = dict(
        engine="local",
        model="qwen2.5-coder-1.5b-instruct",
        batch_size=32,
        max_chars=400_000,
        acknowledge_privacy=False,
        formality="default",
    )
    c.references = dict(
        engine="",  # local or deepl translates what has no German; the report says so beside every BLEU
    )
    c.custom = dict(  # of DeepL, from the train split
        enabled=False,
        alpha=0.01,  # chance that the glossary holds any pair by accident
        min_count=3,  # sentences a term is seen in
        min_share=0.8,  # of the sentences with the English, those with the German
        memory_threshold=95,  # per cent; a looser match takes "ten minutes" for "five minutes"; 0 uses none
        instructions=(
            "The text is a transcript of speech: where words are repeated or broken off, translate what is meant.",
            "Write short, plain sentences, as one speaks.",
        ),
    )
    c.mt_tuning = dict(
        steps=2000, pairs="", batch_size=64, lr=1e-4, rank=16, alpha=32.0, max_tokens=128, patience=3, **training
    )
    c.cascade = dict(
        steps=2000, mode="both", batch_size=32, lr=2e-5, nbest=4, refresh=50, cost="chrf", ce=1.0, teacher="references",
        **training,
    )  # fmt: skip
    c.evaluate = dict(
        temperatures=(0.0, 0.4, 0.8),  # the next is tried where a text loops or is unlikely
        beam_size=5,
        batch_size=32,
        systems=(
            *("whisper-v2", "whisper-v3", "lora", "moe", "moe-encoder", "moe-custom-mt", "moe-risk", "moe-distilled"),
            *("salmonn", "salmonn-tuned", "mt", "mt-custom", "mt-local-tuned"),
        ),
        comet="",
        semscore="",
    )
    c.stress = dict(
        systems=("whisper-v2", "lora", "moe", "moe-encoder"),
        utterances=200,
        noises=("white", "pink", "babble", "reverberation"),
        snr_db=(20.0, 10.0, 5.0, 0.0),
        recordings="",
        columns="",
    )
    c.report = dict(bootstrap=1000, baseline="whisper-v2", worst=20, audio=False)
    c.salmonn = dict(
        steps=0,
        spell_steps=0,
        spell_lr=1e-3,
        llm="",
        weights="",
        beats="",
        template="USER: {}\nASSISTANT:",
        end="</s>",
        width=768,
        window_s=0.333333,
        stride_s=0.333333,
        dropout=0.1,
        rank=8,
        alpha=32.0,
        translation_share=0.5,
        beam_size=4,
        max_tokens=200,
        batch_size=8,
        lr=3e-5,
        **(training | dict(warmup=3000, weight_decay=0.05)),
    )
    return c.lock()
