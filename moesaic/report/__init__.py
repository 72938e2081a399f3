"""One self-contained page that says what runs did; reads records and needs no torch."""
