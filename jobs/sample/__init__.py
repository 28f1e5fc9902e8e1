"""`sample`: a policy responds to a corpus's prompts."""
