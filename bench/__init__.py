"""`make bench`: Crossfade beside nginx, HAProxy and Envoy on the same machine in the same run."""
