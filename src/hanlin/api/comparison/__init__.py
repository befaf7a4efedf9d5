"""`hanlin compare`: recipes x methods x seeds as a grid of runs, and what came of them in one table and one page."""
