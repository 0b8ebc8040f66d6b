"""The page of `fs4_jax.view`: pictures, the HTTP server, the page itself."""
