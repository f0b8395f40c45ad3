"""Little-Big cascades: a cheap model answers first, and only samples it is unsure of go on to an expensive one.

Source: "Speeding up image classifiers with little companions". The core (`rule`, `confidence`, `sweep`) needs NumPy
alone and knows nothing of models.
"""
