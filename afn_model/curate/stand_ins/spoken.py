"""What the recordings of the stand-ins say: plain sentences, of which a recogniser with a grammar knows every word."""

from __future__ import annotations

SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "the old harbour is quiet before the first boat comes in",
        "we painted the door green because the blue paint was gone",
        "my brother keeps three black horses behind the farm",
        "the train to the north leaves at seven every morning",
        "she wrote a long letter to the teacher last winter",
        "nobody knows how many people came to the market",
        "please open the window and close the heavy door",
        "the doctor said that he should walk for an hour each day",
        "our neighbour grows apples and pears in a small garden",
        "the bridge over the river was built by two young men",
        "they found a silver ring under the kitchen floor",
        "he reads the paper while the coffee gets cold",
        "the children sing a song about a yellow bird",
        "the storm broke the roof of the school in october",
        "we bought bread and cheese and sat down near the water",
        "the museum shows pictures of ships from another century",
        "her sister plays the piano in a hotel by the sea",
        "they will meet again on monday at the small station",
        "the baker starts his work when the city is asleep",
        "an old map on the wall shows the road to the valley",
        "the farmer sold his red truck for a good price",
        "a grey cat sleeps on the chair beside the fire",
        "he lost the key to the box and had to break the lock",
        "the film about the desert won a prize in paris",
        "we measured the table and cut the wood too short",
        "the first question was easy and the last one was not",
        "a friend of mine repairs clocks in a narrow street",
        "the soup needs more salt and a little more time",
        "the lights went out in the middle of the second game",
        "she carried the heavy basket up the hill alone",
        "the captain asked for silence and looked at the sky",
        "every summer they sleep in a tent beside the lake",
        "the engine makes a strange noise when it is cold",
        "my father planted this tree when i was born",
        "the woman in the yellow coat has missed her bus",
        "there is a letter for you on the kitchen table",
    ),
    "de": (
        "Der alte Hafen ist am Morgen ganz still.",
        "Meine Schwester fährt jeden Tag mit dem Rad zur Arbeit.",
        "Im Garten hinter dem Haus wachsen Äpfel und Birnen.",
        "Wir treffen uns am Montag wieder am kleinen Bahnhof.",
        "Das Kind singt ein Lied über einen gelben Vogel.",
        "Der Bäcker beginnt mit der Arbeit, wenn die Stadt noch schläft.",
        "Niemand weiß, wie viele Leute auf dem Markt waren.",
        "Die Brücke über den Fluss ist sehr alt.",
    ),
    "es": (
        "El puerto viejo está tranquilo por la mañana.",
        "Mi hermana toca el piano en un hotel cerca del mar.",
        "Compramos pan y queso y nos sentamos junto al agua.",
        "Nadie sabe cuántas personas vinieron al mercado.",
        "El tren del norte sale todos los días a las siete.",
        "La tormenta rompió el techo de la escuela en octubre.",
        "Un gato gris duerme en la silla al lado del fuego.",
        "El panadero empieza su trabajo cuando la ciudad duerme.",
    ),
    "fr": (
        "Le vieux port est calme avant le premier bateau.",
        "Ma sœur joue du piano dans un hôtel près de la mer.",
        "Nous avons acheté du pain et du fromage au marché.",
        "Personne ne sait combien de gens sont venus hier.",
        "Le train du nord part tous les matins à sept heures.",
        "L'orage a cassé le toit de l'école en octobre.",
        "Un chat gris dort sur la chaise à côté du feu.",
        "Le boulanger commence son travail quand la ville dort.",
    ),
}
# A telephone number, which may reach neither texts nor the audio of an export.
PRIVATE = "please call me at five five five zero one nine two"
TITLES: dict[str, tuple[str, ...]] = {
    "en": ("Notes from the harbour", "What we heard this week", "A walk through the old town", "Letters read aloud"),
    "de": (
        "Geschichten aus dem alten Hafen",
        "Was wir in dieser Woche gehört haben",
        "Ein Spaziergang durch die Stadt",
    ),
    "es": ("Historias del puerto viejo", "Lo que hemos oído esta semana", "Un paseo por la ciudad antigua"),
    "fr": ("Histoires du vieux port", "Ce que nous avons entendu cette semaine", "Une promenade dans la vieille ville"),
}
# Channel: its licence as its site writes it, its language ("" where nobody speaks), and what it has.
CHANNELS: dict[str, tuple[str, str, str]] = {
    "Harbour Radio": ("Creative Commons Attribution license (reuse allowed)", "en", "talk"),
    "Workshop Notes": ("https://creativecommons.org/licenses/by/4.0/", "en", "mixed"),
    "Evening Letters": ("CC0 1.0", "en", "conversation"),
    "Kitchen Table": ("CC BY-SA 4.0", "en", "panel"),
    "Field Sounds": ("CC BY 4.0", "", "sounds"),
    "Stadtgarten": ("CC BY 4.0", "de", "talk"),
    "Plaza Mayor": ("CC0 1.0", "es", "conversation"),
    "Le Quai": ("Public Domain", "fr", "talk"),
}
DENIED = ("Standard YouTube License", "CC BY-NC-ND 4.0")
