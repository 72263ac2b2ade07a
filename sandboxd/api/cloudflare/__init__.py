"""What Cloudflare's sandbox clients speak, as thin faces over the same domain as /v1.

    /cloudflare/v1/…                    the bridge's REST API: `bridge_routes`
    /cloudflare/sandboxes/<name>/api/…  the container's API: `container_routes`

Nothing is implemented here that /v1 has. Both faces share who a caller means (`names`: a caller's own id is the
sandbox's unique name, and a sandbox comes to be at its first use) and how errors are told (`problems`).
"""
