"""A decoder that is not one: it tries what a decoder that was taken over might try, and says what came of it.

``parent`` runs all tries (``tries``) through a sandbox and prints what came of each. Its decoder is ``child`` or, with
less around it, ``unfiltered_child``, ``unlocked_child`` or ``free_child``.
"""
