"""Cross-modality learning in pure torch: the adversarial feature transition, and the loss of the fusion."""
