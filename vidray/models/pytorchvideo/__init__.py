"""PyTorchVideo's networks: 3D ResNets, SlowFast, X3D and MViT.

Nothing is imported here: the table of variants is read where there is no torch. ``vidray.models.registration`` makes
the Auto classes of Transformers know them.
"""
