"""What several families are made of: batches, processors, span corruption, first weights."""
