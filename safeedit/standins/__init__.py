"""The stand-ins: tiny chat models in the architectures of the three paper models.

`corpus` writes their training text, `build` trains them, `evaluate` decides whether a
trained one is accepted. The folders `llama`, `mistral` and `gemma` hold the shipped
weights in Hugging Face layout.
"""
