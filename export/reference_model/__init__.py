"""The built-in text-to-emoji latent diffusion model is trained from scratch here.

``python -m edgediff_export.reference_model --help`` lists the stages.
"""
