"""WebShop without Java, spaCy or faiss: the official data files, a search engine that ranks as Lucene does, the paper's reward."""
