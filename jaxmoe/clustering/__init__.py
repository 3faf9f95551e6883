"""How utterances are grouped: features without channel, voice and words; clustering methods; figures of quality."""
