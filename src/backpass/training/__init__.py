"""The training harness: data, methods, the loop and checkpoints (extra ``lab``)."""
