"""What a run shows about itself: report.html, one file that opens without a network, and model_card.md."""
