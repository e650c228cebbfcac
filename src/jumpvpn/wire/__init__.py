"""Codecs of the control payloads that the packet core carries without looking inside. Pure."""
