//! One answer for all who ask the same at the same time.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// Puts one question at a time. Nobody gets an answer that is older than their
/// own call: who comes while a question is out waits for the next one, together
/// with all others who came meanwhile.
#[derive(Debug)]
pub struct Shared<T> {
    /// Questions put so far.
    begun: AtomicU64,
    /// The latest answer and the number of its question; locked while one is out.
    last: Mutex<Option<(u64, T)>>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self {
            begun: AtomicU64::new(0),
            last: Mutex::default(),
        }
    }
}

impl<T: Clone> Shared<T> {
    /// The answer to a question that was put after this call began: `question`
    /// itself, or another caller's. Dropping it takes nothing from the others.
    pub async fn ask(&self, question: impl Future<Output = T>) -> T {
        let before = self.begun.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if let Some((number, answer)) = &*last
            && *number > before
        {
            return answer.clone();
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let answer = question.await;
        *last = Some((number, answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn who_comes_meanwhile_shares_the_next_answer() {
        let shared = Arc::new(Shared::default());
        let asked = Arc::new(AtomicU64::new(0));
        let gate = Arc::new(Semaphore::new(0));
        let ask = || {
            let (shared, asked, gate) = (shared.clone(), asked.clone(), gate.clone());
            tokio::spawn(async move {
                let question = async {
                    let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
                    gate.acquire().await.unwrap().forget();
                    number
                };
                shared.ask(question).await
            })
        };
        let first = ask();
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let late: Vec<_> = (0..100).map(|_| ask()).collect();
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(2);
        assert_eq!(first.await.unwrap(), 1);
        for one in late {
            assert_eq!(one.await.unwrap(), 2);
        }
        // A new call never gets an old answer.
        gate.add_permits(1);
        assert_eq!(ask().await.unwrap(), 3);
    }

    #[tokio::test]
    async fn one_who_gives_up_takes_nothing_from_the_others() {
        let shared = Arc::new(Shared::default());
        let hung = tokio::spawn({
            let shared = shared.clone();
            async move { shared.ask(std::future::pending()).await }
        });
        tokio::task::yield_now().await;
        let next = tokio::spawn({
            let shared = shared.clone();
            async move { shared.ask(async { 1 }).await }
        });
        tokio::task::yield_now().await;
        hung.abort();
        assert_eq!(next.await.unwrap(), 1);
    }
}
