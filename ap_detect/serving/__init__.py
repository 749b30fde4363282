"""The exported graph: signatures, labels, versions."""
