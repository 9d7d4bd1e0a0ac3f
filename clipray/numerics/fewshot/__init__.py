"""Few-shot classifiers on one matrix of embeddings: what heads and control fusers are made of."""
