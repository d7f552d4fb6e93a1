"""LoRA: low-rank corrections of a model's weights, joined into them or kept apart (arXiv:2106.09685)."""
