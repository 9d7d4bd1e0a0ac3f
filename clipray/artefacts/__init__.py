"""What steps leave for each other, one file an artefact: where it lies, what made it, writing and reading it."""
