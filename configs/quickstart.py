"""Whisper tiny.en with ten LoRA experts on the demo corpus (simulated disorders), beside base, on two CPU cores.

COMMAND: python -m jaxmoe.launch --phase=all --config=configs/quickstart.py
Variant `encoder` adapts the encoder alone and leaves Whisper's decoder as it is: quickstart.py:encoder.
Variant `smoke` runs every phase in about a minute with a few utterances and steps, to see that an installation works.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "full") -> ConfigDict:
    """Fields of a run; --config.group.field=VALUE changes one."""
    c = ConfigDict({"seed": 0})
    c.data = dict(
        corpus="demo",  # demo, manifest, sap, torgo, uaspeech or huggingface
        path="",  # of the corpus, where it has one
        pretrain_share=0.5,  # of train, for clusters, gate and experts; 0.2 for a corpus of hours rather than minutes
        unseen_etiologies="",  # "ALS,stroke": only evaluated, to see what a run does for what it has not heard
        num_workers=2,
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
    c.demo = dict(  # 132 + 21 + 21 simulated speakers
        train_speakers_per_voice=6,
        held_out_speakers_per_voice=7,
        train_utterances=10,  # of each speaker
        validation_utterances=3,
        evaluation_utterances=5,
    )
    c.manifest = dict(columns="")  # of a manifest, e.g. "text=transcript,etiology=diagnosis"
    c.sap = dict(disfluencies=False)  # whether the text to learn keeps "(uh)"
    c.torgo = dict(microphone="head")  # head, array or both
    c.uaspeech = dict(microphones="M5")  # M3,M5 or all
    c.huggingface = dict(columns="")  # as of a manifest; "path" names the audio's
    c.mesh = dict(data=-1, model=1)  # devices; data -1 takes all that model leaves
    c.model = dict(
        backbone="tiny.en",
        second="base",  # evaluated without fine-tuning beside the backbone; "" for none
        num_experts=10,
        rank=8,
        shared_rank=8,  # always-on path; 0 turns it off
        alpha=16.0,  # every column is scaled by alpha / rank
        top_k=2,
        gate_hidden=512,
        routing="gate",  # "given" routes by the clusters, evaluation too: an oracle, for ablations
        lora_targets=(r"decoder/blocks/.*",),  # regexes of linear maps
        dtype="auto",
        remat=False,
    )
    c.embed = dict(
        batch_size=8,
        context="trimmed",  # the audio and its margin; "full" pads to 30 s, several times the work
        variant_clips=48,  # recordings heard in other voices and channels, to know what must not decide a cluster
        variant_draws=4,
        frames="audio",  # pooled for clustering; "speech" leaves out what is 25 dB below the loudest frame
        margin_s=1.0,  # silence after the audio; an unadapted decoder needs the 30 s, an adapted one does not
    )
    c.cluster = dict(
        method="hdbscan",  # kmeans, spectral; etiology and random look at no sound, for ablations
        layer=2,  # encoder block whose mean is clustered: the middle says how, the end says what
        pooling="mean",  # of its frames; or "mean+std"
        nuisance=10,  # directions of channel, and of voice, that are dropped
        remove_text=False,  # a regression on the transcript; for corpora of few prompts read by many speakers
        by_speaker=True,  # clusters speakers' means
        pca=10,
        umap_dim=5,
        neighbors=10,
        min_cluster_share=0.05,  # of the speakers; clusters beyond num_experts are merged
        min_samples=2,
        selection="eom",  # or "leaf"
        noise="soft",  # one-hot but for noise; "drop" leaves noise out, "membership" is soft for all
    )
    c.reweight = ""  # a column, e.g. language, etiology, speaker: training draws its groups equally often
    training = dict(warmup=10, weight_decay=0.01, clip_norm=1.0, log_every=10, save_every=50)
    c.gate = dict(steps=200, batch_size=64, lr=1e-3, class_balance=0.5, **training)
    c.experts = dict(steps=30, batch_size=16, lr=5e-4, **training)
    c.joint = dict(
        steps=90,
        batch_size=16,
        lr=5e-4,
        balance=0.01,  # weights of the auxiliary losses
        z=0.001,
        align=0.1,
        soft_steps=0,  # that mix all experts before the top k
        temperature=1.0,  # at their beginning
        noise=0.0,  # standard deviation on gate logits
        min_effective=0.6,  # of the live experts; under it the run warns of collapse
        **training,
    )
    # rank 0: as many parameters as the mixture
    c.baseline = dict(steps=120, batch_size=16, lr=5e-4, rank=0, **training)
    c.encoder = dict(  # phase encoder: its biases and norms, and one LoRA, from the audio
        steps=320,  # the longest phase and the largest gain; 0 leaves it out
        batch_size=8,
        rank=4,  # of the LoRA on its linear maps; 0 for none
        lr=1e-3,
        **training,
    )
    c.personalize = dict(
        shots=0,  # recordings that each evaluation speaker gives; 0 turns the phase off
        steps=20,  # at most; the recordings themselves say how many are good for them
        lr=1e-3,
    )
    c.mt = dict(
        engine="local",  # local, deepl or none
        model="qwen2.5-coder-1.5b-instruct",
        batch_size=32,
        max_chars=400_000,  # DeepL's budget, in billed characters
        acknowledge_privacy=False,  # True lets transcripts leave this machine, to DeepL
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
    c.mt_tuning = dict(  # phase mt: one LoRA on the local translator
        steps=0,  # 0 leaves the phase out: the 1.5B takes hours on two cores
        pairs="",  # a file of English<TAB>German lines, trained on beside the corpus's own pairs
        batch_size=16,
        lr=2e-4,
        rank=16,
        alpha=32.0,
        max_tokens=64,  # longer pairs are left out
        patience=2,  # saves without a better validation loss before it stops
        **(training | dict(save_every=20)),
    )
    c.cascade = dict(  # phase cascade
        steps=0,  # 0 leaves the phase out
        mode="risk",  # the translator in the loop; "distill": one model that says German (a multilingual one); "both"
        batch_size=8,
        lr=1e-4,
        nbest=4,
        refresh=10,  # steps between two looks at what the model says now
        cost="chrf",  # or bleu: 1 - the sentence's score
        ce=1.0,  # of the transcript's cross-entropy beside the risk; 0.1 lets go of what few recordings taught
        teacher="references",  # of distill; or translator
        **training,
    )
    c.evaluate = dict(
        temperatures=(0.0, 0.4, 0.8),  # the next is tried where a text loops or is unlikely
        beam_size=1,
        batch_size=16,
        systems=(
            *("whisper-v2", "whisper-v3", "lora", "moe", "moe-encoder", "moe-custom-mt", "moe-risk", "moe-distilled"),
            *("salmonn", "salmonn-tuned", "mt", "mt-custom", "mt-local-tuned"),
        ),
        comet="",  # unbabel-comet's program: "/opt/comet/bin/comet-score --gpus 0 --model Unbabel/wmt22-comet-da"
        semscore="",  # a model of sentence-transformers: "paraphrase-multilingual-mpnet-base-v2"
    )
    c.stress = dict(
        systems=("whisper-v2", "lora", "moe", "moe-encoder"),  # () leaves the phase out
        utterances=4,  # of the evaluation split, under each noise; 0 for none
        noises=("babble", "reverberation"),  # also white, pink
        snr_db=(10.0, 0.0),
        recordings="",  # table of other people's speech, as config.data.path; groups are in its column `language`
        columns="",  # of that table, e.g. "text=transcript,language=accent"
    )
    c.report = dict(
        bootstrap=1000,
        baseline="whisper-v2",
        worst=20,  # utterances listed
        audio=True,  # puts their recordings into the page; they are people's voices
    )
    c.salmonn = dict(  # a language model that hears; the recipe is the original's
        steps=0,  # of phase salmonn; 0 leaves it out (the original: 90,000)
        spell_steps=0,  # before them: the connector alone learns to spell transcripts (jaxmoe/train/spelling.py)
        spell_lr=1e-3,
        llm="",  # a Llama or Qwen2: a name of weights, a .gguf file or a Hugging Face folder; "" leaves the rows out
        weights="",  # salmonn_v1.pth or what else has its keys; "" starts from a random connector
        beats="",  # the BEATs file beside Whisper; "" hears by Whisper alone
        template="USER: {}\nASSISTANT:",
        end="</s>",  # the token that ends an answer
        width=768,  # of the Q-Former
        window_s=0.333333,
        stride_s=0.333333,
        dropout=0.1,  # in the Q-Former
        rank=8,  # of the LoRA on queries and values
        alpha=32.0,
        translation_share=0.5,  # of the utterances; the rest is transcribed
        beam_size=4,
        max_tokens=200,
        batch_size=8,
        lr=3e-5,
        **(training | dict(warmup=3000, weight_decay=0.05)),
    )
    if variant == "smoke":
        c.demo.update(train_speakers_per_voice=1, held_out_speakers_per_voice=2)
        c.demo.update(train_utterances=2, validation_utterances=1, evaluation_utterances=1)
        c.data.pretrain_share, c.embed.variant_clips, c.cluster.nuisance = 1.0, 4, 2
        for phase in ("gate", "experts", "joint", "encoder", "baseline"):
            c[phase].update(steps=4, log_every=2, save_every=2)
        c.experts.batch_size = c.joint.batch_size = c.encoder.batch_size = c.baseline.batch_size = 4
        c.stress.update(systems=("moe",), utterances=1, noises=("white",), snr_db=(10.0,))
        c.model.second, c.mt.engine, c.report.bootstrap = "", "none", 100
    elif variant == "encoder":
        c.model.update(num_experts=1, top_k=1, rank=1, shared_rank=0, alpha=1.0)
        for phase in ("experts", "joint"):  # the one expert stays what it is drawn as, and changes nothing
            c[phase].update(steps=1, lr=0.0)
        c.baseline.steps = 0
        c.evaluate.systems = tuple(name for name in c.evaluate.systems if name not in ("lora", "moe"))
        c.stress.systems = ("whisper-v2", "moe-encoder")
    elif variant != "full":
        raise ValueError(f"configs/quickstart.py:{variant}: expected full, encoder or smoke.")
    return c.lock()
