"""Where money is held and written down."""
