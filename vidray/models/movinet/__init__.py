"""MoViNet A0 to A5, base and stream.

Nothing is imported here: the table of variants is read where there is no torch. ``vidray.models.registration`` makes
the Auto classes of Transformers know them.
"""
