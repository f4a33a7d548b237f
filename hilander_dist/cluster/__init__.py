"""The level loop: forward, decode, roots, collapse, and what comes out of it."""
