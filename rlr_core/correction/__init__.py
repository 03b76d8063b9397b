"""Inverse noise correction: noise that a sampler of few steps turns into pictures like the given ones.

    pictures --inversion.py--> the noise behind each, by the sampler's own steps run backwards
             --corrector.py--> a small flow from standard normal noise to noise of that kind
             --fitting.py----> how it is trained
             --report.py-----> what it changes: KID, FID, and how exact the inversion was

A sampler with few steps does not turn standard normal noise into the law of its training data: what its steps
lose, they would need other noise for. The base model stays as it is; the corrector runs before it. One
corrector fits one model, number of steps and guidance.
"""
