"""What trains: the LightningModule, its optimizer and schedule, checkpoints, the run directory, callbacks."""
