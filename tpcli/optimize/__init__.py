"""From targets for speed, score and FLOPs to a pooled model, checked on held-out images.

Importing this imports no torch; the work is in the modules beside.
"""
