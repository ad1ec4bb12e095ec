"""edgediff_export: turns diffusers models into edgediff bundles (needs torch; never imported by the runtime)."""
