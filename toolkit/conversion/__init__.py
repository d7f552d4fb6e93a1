"""Models in another form: GGUF files, and what the vendor's toolkits make."""
