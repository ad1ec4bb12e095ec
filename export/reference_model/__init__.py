"""The built-in text-to-emoji latent diffusion model, trained from scratch.

``python -m edgediff_export.reference_model --help`` lists the stages.
"""
