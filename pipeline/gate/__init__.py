"""Check models, tokenizers and all rows of the data before a pipeline's first stage."""
