//! epoll sets against a plain reference, and the rules of `epoll_ctl(2)`.
