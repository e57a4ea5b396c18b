"""The equations: encoder, rotary time embedding, adaptor, language model."""
