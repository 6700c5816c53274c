"""Local disks and object stores alike: URIs, versions, retries, fetching, create-once writes and the lease."""
