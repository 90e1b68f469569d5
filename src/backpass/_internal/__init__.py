"""What several packages share and no user imports."""
