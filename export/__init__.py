"""edgediff_export turns diffusers models into edgediff bundles. It needs torch; the runtime never imports it."""
