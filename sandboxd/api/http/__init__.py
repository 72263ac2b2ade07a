"""HTTP/1.1 as the API speaks it: listeners, connections, exchanges, bodies, WebSockets. Knows no route."""
