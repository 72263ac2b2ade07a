"""Cloudflare's npm client against sandboxd: how long what its users call takes."""
