"""The bundle: a folder that holds a model as files of engines, and a manifest that says what they are."""
