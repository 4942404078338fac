"""What stale tokens cost, and what each correction and the controller of η get back."""
