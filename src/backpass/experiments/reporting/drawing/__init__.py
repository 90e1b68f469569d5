"""The static figures of the papers, one module each, drawn with matplotlib from groups of records."""
