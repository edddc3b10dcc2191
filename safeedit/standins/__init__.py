"""The stand-ins: tiny chat models in the architectures of the three paper models.

`corpus` writes their training text, `build` trains them, `evaluate` decides whether a
trained one is accepted. The folders `llama`, `mistral` and `gemma` hold the shipped
weights in Hugging Face layout.
"""

# Tokens of the GCG suffix in model cards and chapter 1: long enough that some requests
# fall, short enough that some stand, so that a defense has room to show.
SUFFIX_LENGTH = {"standin-llama": 4, "standin-mistral": 4, "standin-gemma": 3}
