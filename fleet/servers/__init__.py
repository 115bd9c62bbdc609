"""Game servers as the API sees them: what may be asked, and the commands that the region managers carry out."""
