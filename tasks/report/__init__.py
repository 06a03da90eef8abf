"""The parts of report.html: figures, a choice of samples, and the page they go into."""
