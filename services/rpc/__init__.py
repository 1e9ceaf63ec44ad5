"""What every role shares to serve and to call: TLS, errors, limits, handshake, blobs."""
