"""Looking at what a pretraining sees and predicts."""
