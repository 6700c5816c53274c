"""What there is to process: sources become rows, one per video; labelled sources get labels and splits too."""
