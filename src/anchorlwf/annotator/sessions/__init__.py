"""Sessions at work: every step of a person is stored before it returns."""
